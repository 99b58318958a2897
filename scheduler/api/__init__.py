"""What users and operators ask, answered by any replica from what is committed, and their wishes, written down."""

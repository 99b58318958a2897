"""The agent: what runs on every KVM host."""

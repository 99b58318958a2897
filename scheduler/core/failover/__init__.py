"""Lost hosts: what is known of them, what is done, and what becomes of their jobs. Planned work on hosts too."""

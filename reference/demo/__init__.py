"""The demo: a cloud server and an edge agent as processes of their own, and what they send."""

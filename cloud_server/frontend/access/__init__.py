"""Access: identities, ports, TLS, enrolment, open calls."""

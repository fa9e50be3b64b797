"""Who may call, and over what: ports, TLS, enrolment, open calls."""

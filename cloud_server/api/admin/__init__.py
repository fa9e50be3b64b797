"""Management over HTTP, for keys with the scope `manage`; it does what the command line does."""

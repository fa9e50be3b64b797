"""Looking after devices: orders down, reports up."""

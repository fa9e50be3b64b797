"""Being looked after: orders of the service, and what this device tells it."""

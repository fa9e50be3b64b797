"""`make bench-hub`: edge models that join a hub, beside bundles of their own."""

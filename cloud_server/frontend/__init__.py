"""The front-end process: gRPC, sessions, admission, answers. No tensor library."""

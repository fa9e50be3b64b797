"""Operating points, rate ladder and guard, measured on held-out inputs."""

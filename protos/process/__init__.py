"""What the processes of both halves share: settings, logs, metrics, health port, files, console."""

"""The machine around the agent: its sensors, its checks, and those who look after it."""

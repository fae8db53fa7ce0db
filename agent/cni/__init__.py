"""The CNI plugin: a thin client that containerd starts, and the server of it in the agent."""

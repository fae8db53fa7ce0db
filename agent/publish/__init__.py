"""What the agent writes to the Kubernetes API: its endpoints, what became of policies, events."""

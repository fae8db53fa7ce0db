"""The node command `underpass`, and what answers it in the agent."""

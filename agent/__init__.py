"""The agent of a node: from what the cluster should be to what the pinned maps hold."""

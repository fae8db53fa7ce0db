"""The Kubernetes API as a plane: list and watch of what the network needs, and the few writes it makes."""

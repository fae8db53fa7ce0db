"""`lab measure latency`: the graph of latency by percentile, made again on this machine.

Two pods on one node, directly, redirected in the kernel, and through real proxies in a third pod.
"""

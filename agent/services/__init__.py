"""Services: from Service, EndpointSlice and hostPort to the load balancer's tables."""

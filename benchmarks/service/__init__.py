"""The service over HTTP, other servers in comparison, and a simulated fleet."""

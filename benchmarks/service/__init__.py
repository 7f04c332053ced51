"""The service over HTTP, compared with other servers, and a simulated fleet."""

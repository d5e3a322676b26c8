"""Models, requests and the answers that each request must get."""

"""Decides which request runs when and where: router, batch queue, cost model, load balancer."""

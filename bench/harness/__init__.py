"""Processes, load and measurements that every scenario shares."""

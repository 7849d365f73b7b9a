"""Agents of one device, in several processes, that share its flows, meters and profiles."""

"""How fast networks and engines are on one machine."""

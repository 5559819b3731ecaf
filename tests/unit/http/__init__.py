"""The app-server node over the in-memory client."""

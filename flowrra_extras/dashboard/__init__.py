"""The dashboard: see and steer every job, mounted in a web program or on its own."""

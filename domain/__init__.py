"""What an event, a notification, a delivery and a retry are, and the use cases."""

"""What runs flows: on threads (`kvi.driver.threads`), or in an event loop (`kvi.driver.loop`)."""

"""What several tests need: certificates, proxies."""

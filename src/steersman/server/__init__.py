"""Steering over HTTP: the OpenAI protocol with steering per request, and everything around it."""

"""The recipes, each as one flow: what people come to a coordination store for."""

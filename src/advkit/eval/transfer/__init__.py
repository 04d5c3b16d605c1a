"""How adversarial examples of one model do on other models."""

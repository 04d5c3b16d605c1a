"""Transfer: adversarial examples of one model tried on others."""

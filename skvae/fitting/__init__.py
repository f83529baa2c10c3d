"""How the models are learnt: every training loop, in torch and skorch."""

"""How the Linear layers of a frozen base store and multiply their weights."""

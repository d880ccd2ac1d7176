"""All pictures of a game from one file: planned, made once, kept, and put where the game loads them."""

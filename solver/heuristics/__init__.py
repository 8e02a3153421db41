"""Plans without proof: walks made from prices or numbers, improved by small steps, with experts dealt or filled in."""

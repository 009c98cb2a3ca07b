"""Files from strangers, damaged at random: each is read, or refused in one clear line."""

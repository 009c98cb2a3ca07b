"""What forkpoint says: in each language the same phrases under the same keys, and Chinese for what is made in English."""

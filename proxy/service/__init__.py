"""The stories of imgkeep, told in terms of the ports: find, fill, deliver."""

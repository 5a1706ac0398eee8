"""Where images come from: folders, tables, archives, manifests, each listed once and then read from anywhere."""

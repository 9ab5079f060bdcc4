"""Makes an Arrow dataset of 224x224 crops from photographs, and reads it in batches. Imports no other package here."""

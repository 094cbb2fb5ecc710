"""What a run is asked to be: its configuration, checked and built, and the errors a user can mend."""

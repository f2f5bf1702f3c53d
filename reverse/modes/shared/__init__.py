"""What several modes share: settings, confidence, judging, chains and rounds."""

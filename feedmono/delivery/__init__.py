"""From a ring's record to what is stored, and to what is known of it: the serializer's parts."""

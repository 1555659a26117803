#version 430
// Nothing but depth.
void main() {}

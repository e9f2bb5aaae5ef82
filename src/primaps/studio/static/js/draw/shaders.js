// Draws everything in one pass: the image, the color of its labels, outlines between classes.

export const VERTEX = `#version 300 es
uniform vec4 place;  // left, top, width, height of the image in pixels of the canvas
uniform vec2 canvas;
out vec2 at;
void main() {
  at = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  vec2 pixel = place.xy + at * place.zw;
  gl_Position = vec4(pixel.x / canvas.x * 2.0 - 1.0, 1.0 - pixel.y / canvas.y * 2.0, 0.0, 1.0);
}`;

export const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform sampler2D image;
uniform usampler2D labels;
uniform sampler2D palette;  // row 0: color, alpha 0 if hidden; row 1: class number, dimmed
uniform sampler2D confidence;     // 0..1, on the feature grid
uniform float opacity;
uniform float threshold;
uniform vec2 outline;       // width as a fraction of the image; 0 for none
uniform bool coarse;        // labels on the feature grid, enlarged with smooth borders
in vec2 at;
out vec4 color;

uint near(vec2 p) {
  ivec2 size = textureSize(labels, 0);
  return texelFetch(labels, clamp(ivec2(p * vec2(size)), ivec2(0), size - 1), 0).r;
}

// Returns the label with the largest bilinear weight among the four around a point.
uint smoothed(vec2 p) {
  ivec2 last = textureSize(labels, 0) - 1;
  vec2 q = p * vec2(last + 1) - 0.5;
  ivec2 i = ivec2(floor(q));
  vec2 f = q - vec2(i);
  uint l[4];
  float w[4];
  for (int k = 0; k < 4; k++) {
    ivec2 d = ivec2(k & 1, k >> 1);
    l[k] = texelFetch(labels, clamp(i + d, ivec2(0), last), 0).r;
    w[k] = (d.x == 1 ? f.x : 1.0 - f.x) * (d.y == 1 ? f.y : 1.0 - f.y);
  }
  if (l[0] == l[1] && l[0] == l[2] && l[0] == l[3]) return l[0];
  uint best = l[0];
  float most = -1.0;
  for (int k = 0; k < 4; k++) {
    float sum = 0.0;
    for (int j = 0; j < 4; j++) sum += l[j] == l[k] ? w[j] : 0.0;
    if (sum > most) { most = sum; best = l[k]; }
  }
  return best;
}

uint label(vec2 p) { return coarse ? smoothed(p) : near(p); }

// Returns the class number at a point; 0 where no class is shown.
float shown(vec2 p, uint found) {
  if (texelFetch(palette, ivec2(found, 0), 0).a == 0.0) return 0.0;
  if (threshold > 0.0 && texture(confidence, p).r < threshold) return 0.0;
  vec4 row = texelFetch(palette, ivec2(found, 1), 0);
  return row.r * 255.0 + row.g * 65280.0;
}

// Returns whether the class shown at a point differs from this label and number.
bool differs(vec2 p, uint here, float n) {
  uint l = label(p);
  return (l != here || threshold > 0.0) && shown(p, l) != n;
}

void main() {
  vec3 base = texture(image, at).rgb;
  color = vec4(base, 1.0);
  if (opacity == 0.0 && outline.x == 0.0) return;
  uint here = label(at);
  float number = shown(at, here);
  float back = texelFetch(palette, ivec2(here, 1), 0).b;
  if (number > 0.0) {
    vec3 paint = texelFetch(palette, ivec2(here, 0), 0).rgb;
    color.rgb = mix(base, paint, opacity * (1.0 - 0.85 * back));
  }
  if (outline.x > 0.0) {
    vec2 right = at + vec2(outline.x, 0.0), below = at + vec2(0.0, outline.y);
    bool edge = (right.x < 1.0 && differs(right, here, number))
             || (below.y < 1.0 && differs(below, here, number));
    if (edge) color.rgb = mix(color.rgb, vec3(1.0), 0.85);
  }
}`;

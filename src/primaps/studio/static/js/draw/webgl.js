// Draws on the graphics card. Labels and colors are textures: a new palette uploads 2 kB.

import { FRAGMENT, VERTEX } from "./shaders.js";

const UNITS = { image: 0, labels: 1, palette: 2, confidence: 3 };
const UNIFORMS = ["place", "canvas", "opacity", "threshold", "outline", "coarse", ...Object.keys(UNITS)];

const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

let card = null; // unknown

/** Returns whether a graphics card computes WebGL2. */
function hasCard() {
  if (card !== null) return card;
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) return (card = false);
  const known = gl.getExtension("WEBGL_debug_renderer_info");
  card = !SOFTWARE.test(gl.getParameter(known ? known.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return card;
}

/** Returns the drawing on a canvas, or null without a graphics card. */
export function webgl(canvas) {
  if (!hasCard()) return null;
  const gl = canvas.getContext("webgl2", { alpha: true, antialias: false, depth: false });
  if (!gl) return null;
  const program = build(gl);
  gl.useProgram(program);
  const at = Object.fromEntries(UNIFORMS.map((name) => [name, gl.getUniformLocation(program, name)]));
  for (const [name, unit] of Object.entries(UNITS)) gl.uniform1i(at[name], unit);
  gl.bindVertexArray(gl.createVertexArray());
  gl.enable(gl.SCISSOR_TEST);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  const make = (smooth) => texture(gl, smooth);
  const imageTexture = make(true);
  const confidenceTexture = make(true);
  const layers = new Map();
  const layerOf = (name) => {
    if (!layers.has(name)) layers.set(name, { labels: make(false), palette: make(false), width: 0 });
    return layers.get(name);
  };
  const none = layerOf("none");
  upload(gl, none.labels, gl.R8UI, 1, 1, gl.RED_INTEGER, new Uint8Array(1));
  upload(gl, none.palette, gl.RGBA8, 1, 2, gl.RGBA, new Uint8Array(8));
  upload(gl, confidenceTexture, gl.R8, 1, 1, gl.RED, new Uint8Array([255]));
  let image = { width: 1, height: 1 };

  return {
    image(bitmap) {
      image = bitmap;
      gl.bindTexture(gl.TEXTURE_2D, imageTexture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
      gl.generateMipmap(gl.TEXTURE_2D);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    },
    labels(name, map) {
      const layer = layerOf(name);
      layer.width = map.width;
      const format = map.values instanceof Uint16Array ? gl.R16UI : gl.R8UI;
      upload(gl, layer.labels, format, map.width, map.height, gl.RED_INTEGER, map.values);
    },
    clear(name) {
      layerOf(name).width = 0;
    },
    palette(name, { width, data }) {
      upload(gl, layerOf(name).palette, gl.RGBA8, width, 2, gl.RGBA, data);
    },
    confidence({ width, height, values }) {
      upload(gl, confidenceTexture, gl.R8, width, height, gl.RED, values);
    },
    draw(panes, overlay) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.scissor(0, 0, canvas.width, canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform2f(at.canvas, canvas.width, canvas.height);
      bind(gl, UNITS.image, imageTexture);
      bind(gl, UNITS.confidence, confidenceTexture);
      for (const { clip, rect, layer } of panes) {
        const { labels, palette, width } = layerOf(layer ?? "none");
        bind(gl, UNITS.labels, labels);
        bind(gl, UNITS.palette, palette);
        const line = layer && width && overlay.outlines ? overlay.line : 0;
        gl.uniform1f(at.opacity, layer && width ? overlay.opacity : 0);
        gl.uniform1f(at.threshold, layer === "classes" ? overlay.minConfidence : 0);
        gl.uniform2f(at.outline, line / rect.width, line / rect.height);
        gl.uniform1i(at.coarse, width * 3 < image.width ? 1 : 0);
        gl.uniform4f(at.place, rect.left, rect.top, rect.width, rect.height);
        gl.scissor(clip.left, canvas.height - clip.top - clip.height, clip.width, clip.height);
        gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
      }
    },
    end() {
      gl.getExtension("WEBGL_lose_context")?.loseContext();
    },
  };
}

function build(gl) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
    const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
    throw new Error(`the WebGL program cannot be built: ${logs.join(" ")}`);
  }
  return program;
}

function texture(gl, smooth) {
  const found = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, found);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  const filter = smooth ? gl.LINEAR : gl.NEAREST;
  for (const way of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, way, filter);
  return found;
}

function upload(gl, target, inner, width, height, format, data) {
  gl.bindTexture(gl.TEXTURE_2D, target);
  const type = data instanceof Uint16Array ? gl.UNSIGNED_SHORT : gl.UNSIGNED_BYTE;
  gl.texImage2D(gl.TEXTURE_2D, 0, inner, width, height, 0, format, type, data);
}

function bind(gl, unit, found) {
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, found);
}

// Two buttons for each model: back to the photo's view, and the file itself.
for (const button of document.querySelectorAll("button[data-model]")) {
  const model = document.getElementById(button.dataset.model);
  const home = model.getAttribute("camera-orbit");
  const target = model.getAttribute("camera-target");
  const fov = model.getAttribute("field-of-view");
  button.addEventListener("click", () => {
    if (button.dataset.does === "home") {
      Object.assign(model, { cameraOrbit: "auto auto auto" });
      Object.assign(model, { cameraOrbit: home, cameraTarget: target, fieldOfView: fov });
    } else {
      const link = document.createElement("a");
      link.href = model.src;
      link.download = model.id + ".glb";
      link.click();
    }
  });
}

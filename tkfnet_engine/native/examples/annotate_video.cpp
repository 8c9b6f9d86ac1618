// A video in, the same with the expression written on it out:
//   annotate_video ENGINE.tkf IN.mp4 OUT.mp4 [X Y SIZE]
//
// The face is looked for in one fixed square of every frame, by default the largest in the middle: finding faces is
// another library's work. Frames run in batches; a batch's pixels are handed over while the next one is decoded.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>

#define TKFNET_OPENCV
#include "tkfnet.hpp"

namespace {

constexpr std::size_t batch_size = 8;

struct Batch {
  std::vector<cv::Mat> frames;
  std::vector<float> probabilities;
};

// Up to `batch_size` frames.
Batch read(cv::VideoCapture& video) {
  Batch batch;
  cv::Mat frame;
  while (batch.frames.size() < batch_size && video.read(frame)) batch.frames.push_back(frame.clone());
  return batch;
}

void submit(tkfnet::Session& session, Batch& batch, const cv::Rect& face, std::size_t classes) {
  std::vector<tkf_frame> frames;
  std::vector<tkf_crop> crops;
  for (const auto& frame : batch.frames) frames.push_back(tkfnet::frame_from(frame));
  for (const auto& frame : frames) crops.push_back({&frame, face.x, face.y, face.width, face.height});
  batch.probabilities.resize(frames.size() * classes);
  session.submit(crops, batch.probabilities);
}

void write(cv::VideoWriter& video, Batch& batch, const cv::Rect& face, const std::vector<std::string>& labels) {
  const auto* row = batch.probabilities.data();
  for (auto& frame : batch.frames) {
    const auto best = static_cast<std::size_t>(std::max_element(row, row + labels.size()) - row);
    const auto text = labels[best] + " " + std::to_string(static_cast<int>(100 * row[best] + 0.5f)) + " %";
    cv::rectangle(frame, face, {255, 255, 255}, 2);
    cv::putText(frame, text, {face.x + 6, face.y + 26}, cv::FONT_HERSHEY_SIMPLEX, 0.8, {0, 0, 0}, 4, cv::LINE_AA);
    cv::putText(frame, text, {face.x + 6, face.y + 26}, cv::FONT_HERSHEY_SIMPLEX, 0.8, {255, 255, 255}, 2, cv::LINE_AA);
    video.write(frame);
    row += labels.size();
  }
}

int annotate(char** arguments, bool with_box) {
  cv::VideoCapture in(arguments[2]);
  const cv::Size size(static_cast<int>(in.get(cv::CAP_PROP_FRAME_WIDTH)),
                      static_cast<int>(in.get(cv::CAP_PROP_FRAME_HEIGHT)));
  cv::VideoWriter out(arguments[3], cv::VideoWriter::fourcc('m', 'p', '4', 'v'), in.get(cv::CAP_PROP_FPS), size);
  if (!in.isOpened() || !out.isOpened()) {
    std::fprintf(stderr, "%s cannot be read\n", in.isOpened() ? arguments[3] : arguments[2]);
    return 4;
  }
  const int side = std::min(size.width, size.height);
  const cv::Rect face = with_box ? cv::Rect(std::atoi(arguments[4]), std::atoi(arguments[5]), std::atoi(arguments[6]),
                                            std::atoi(arguments[6]))
                                 : cv::Rect((size.width - side) / 2, (size.height - side) / 2, side, side);

  tkfnet::EngineOptions options;
  options.allow_native_code = true;  // the file is ours
  auto engine = tkfnet::Engine::open(arguments[1], options);
  auto session = engine.session();
  const auto labels = engine.labels();
  std::size_t frames = 0;
  for (auto batch = read(in); !batch.frames.empty();) {
    submit(session, batch, face, labels.size());
    auto next = read(in);
    session.wait();
    write(out, batch, face, labels);
    frames += batch.frames.size();
    batch = std::move(next);
  }
  std::printf("%zu frames\n", frames);
  return 0;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 4 && count != 7) {
    std::fprintf(stderr, "usage: %s ENGINE.tkf IN.mp4 OUT.mp4 [X Y SIZE]\n", arguments[0]);
    return 64;
  }
  return annotate(arguments, count == 7);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}

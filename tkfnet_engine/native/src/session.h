/* The handles of the C API: what tkf_engine and tkf_session point to. */
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "backend.h"

/* What an engine file was opened to; shared by its handle and its sessions. */
struct OpenedEngine {
  tkf::Facts facts;
  std::string facts_text;
  std::string device_name;
  std::unique_ptr<tkf::Backend> backend;
};

struct tkf_engine {
  std::shared_ptr<const OpenedEngine> opened;
};

struct tkf_session {
  tkf_session(std::shared_ptr<const OpenedEngine> engine, tkf_output output);

  /* As the functions of tkfnet.h that are called so, given sound arguments. They throw `Error`. */
  void run(const std::uint8_t* rgb, std::size_t count, float* output);
  void run_crops(const tkf_crop* crops, std::size_t count, float* output);
  void submit(const std::uint8_t* rgb, std::size_t count, float* output);
  void submit_crops(const tkf_crop* crops, std::size_t count, float* output);
  void wait();
  void run_device(const void* pixels, std::size_t count, float* logits, void* stream);

  std::atomic<bool> in_use{false}; /* by a call of some thread */
  std::string error;               /* of the last call; belongs to who set `in_use` */

 private:
  void check_not_submitted() const;
  void check_one_request(std::size_t count) const;
  template <class RunPart>
  void run_in_parts(std::size_t count, float* output, const RunPart& run_part);
  void begin(std::size_t count, float* output);
  void give(const float* logits, std::size_t count, float* output) const;

  std::shared_ptr<const OpenedEngine> engine_;
  const tkf_output output_kind_;
  std::unique_ptr<tkf::BackendSession> backend_; /* before `engine_` goes */
  std::vector<float> answer_;
  float* submitted_output_ = nullptr; /* of the request that tkf_wait ends; null while there is none */
  std::size_t submitted_count_ = 0;
};

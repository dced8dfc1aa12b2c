// Many clients at once, each in a thread of its own as a service has them; all are batched in flight.
//
// service BUNDLE [SLOTS]  answers each line of stdin as a client of its own and prints the answers as they end.
#include <megrez.hpp>

#include <functional>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

std::mutex printing;

void serve(const megrez::model &model, const std::string &question) {
    try {
        std::string messages = R"([{"role": "user", "content": )" + megrez::json_quote(question) + "}]";
        megrez::request request = model.submit_chat(messages, R"({"max_tokens": 64})");
        std::string answer;
        while (auto piece = request.poll()) answer += piece->text();
        std::lock_guard lock(printing);
        std::cout << question << "\n  " << answer << "\n  " << request.usage().output_tokens << " tokens\n";
    } catch (const megrez::error &error) {
        std::lock_guard lock(printing);
        std::cerr << question << ": error " << error.status() << ": " << error.what() << '\n';
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " BUNDLE [SLOTS] < questions\n";
        return 2;
    }
    try {
        megrez::model model(argv[1], {{"slots", argc > 2 ? argv[2] : "8"}});
        std::vector<std::thread> clients;
        for (std::string question; std::getline(std::cin, question);)
            clients.emplace_back(serve, std::cref(model), question);
        for (auto &client : clients) client.join();
        std::cerr << model.stats().output_tokens << " tokens in all\n";
    } catch (const megrez::error &error) {
        std::cerr << "error " << error.status() << ": " << error.what() << '\n';
        return 1;
    }
}
